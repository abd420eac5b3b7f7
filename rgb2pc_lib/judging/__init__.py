"""Is the student as useful as the teacher, and why."""
