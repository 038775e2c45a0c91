"""srlib: the shared code of the SRGAN notebook series for OCT (Ledig et al. 2017, arXiv 1609.04802)."""

__version__ = "0.1.0"
