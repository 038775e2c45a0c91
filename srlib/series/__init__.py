"""The series as a whole: run folders, papermill, sweeps, report, release. No file of the rooms below imports it."""
