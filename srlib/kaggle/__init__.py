"""The series as Kaggle kernels: built, pushed, handed over from one session to the next."""
