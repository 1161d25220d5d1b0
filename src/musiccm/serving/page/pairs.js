/** Which of the served models are a student and its own teacher. */

export const isStudent = (model) => model?.facts.student !== false && model?.facts.student !== null;
export const roleOf = (model) => (isStudent(model) ? "student" : "teacher");

/** A name without the word that tells the two apart. */
const stem = (model) => model.id.replace(/[-_. ]*(student|teacher)/i, "");

const named = (student, teacher) => student.facts.teacher === teacher.id || stem(student) === stem(teacher);

/**
 * Whether a student that does not state its teacher's weights may be of this teacher: it has its text encoder and
 * autoencoder, or, where the server does not know them, is named after it.
 */
function fits(student, teacher) {
  const [own, its] = [student.facts.shared_hash, teacher.facts.shared_hash];
  return own && its ? own === its : named(student, teacher);
}

/**
 * The teacher of a student: the one with the weights that it states. Where it states none, the one that fits; of
 * several the one that its bundle names, or else none, as a guess may be wrong.
 */
function teacherOf(student, models) {
  const teachers = models.filter((model) => !isStudent(model));
  const stated = student.facts.teacher_hash;
  const found = teachers.filter((teacher) => (stated ? teacher.facts.denoiser_hash === stated : fits(student, teacher)));
  return found.find((teacher) => student.facts.teacher === teacher.id) ||
    (stated || found.length === 1 ? found[0] : undefined);
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
