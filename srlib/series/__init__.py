"""The series as a whole: run folders, papermill, evaluation, report, encoder training. No file of the science imports it."""
