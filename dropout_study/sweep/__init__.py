"""Many variants at once: DVC says what is missing and keeps the results, workers in clones of their own train."""
