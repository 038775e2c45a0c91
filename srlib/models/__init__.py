"""Networks and their weights. The two of the paper are at hand here: `from srlib.models import Generator, Discriminator`."""

from .networks import Discriminator, Generator

__all__ = ["Discriminator", "Generator"]
