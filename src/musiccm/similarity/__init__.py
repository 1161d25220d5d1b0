"""Which training clip a sound comes closest to: SIM_AA, the index of training clips, the plagiarism check."""
