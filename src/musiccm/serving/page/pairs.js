/** Which of the served models are a student and its own teacher. */

export const isStudent = (model) => model?.facts.student !== false && model?.facts.student !== null;
export const roleOf = (model) => (isStudent(model) ? "student" : "teacher");

/** A name without the word that tells the two apart. */
const stem = (model) => model.id.replace(/[-_. ]*(student|teacher)/i, "");

/**
 * Whether a student may be of this teacher: it has its text encoder and autoencoder, or, where the server does not know
 * them, is named after it.
 */
function fits(student, teacher) {
  const [own, its] = [student.facts.shared_hash, teacher.facts.shared_hash];
  return own && its ? own === its : named(student, teacher);
}

const named = (student, teacher) => student.facts.teacher === teacher.id || stem(student) === stem(teacher);

/** The teacher of a student; of several with the same parts the one that it is named after, if there is one. */
function teacherOf(student, models) {
  const found = models.filter((model) => !isStudent(model) && fits(student, model));
  return found.find((teacher) => student.facts.teacher === teacher.id) || found.find((teacher) => named(student, teacher)) ||
    (found.length === 1 ? found[0] : undefined);
}

/**
 * The student and the teacher that are compared.
 * @param {Object} mine the chosen model
 * @param {Object[]} models all that are served
 * @returns {Object[]|null} `[student, teacher]`, one of them the chosen one; null where the other is not served
 */
export function pairOf(mine, models) {
  if (isStudent(mine)) {
    const teacher = teacherOf(mine, models);
    return teacher ? [mine, teacher] : null;
  }
  const found = models.filter((model) => isStudent(model) && teacherOf(model, models) === mine);
  const student = found.find((model) => named(model, mine)) || found[0];
  return student ? [student, mine] : null;
}
