"""srlib: the shared code of the SRGAN notebook series for OCT (Ledig et al. 2017, arXiv 1609.04802)."""

from .home import settle

__version__ = "0.1.0"

settle()  # before anything looks for a home folder
