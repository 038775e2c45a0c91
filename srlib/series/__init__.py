"""The series as a whole: run folders, papermill, sweeps, report. No file of the rooms below imports it."""
