"""What maintainers run: the benchmark, the small networks' training, the pictures of README and RESULTS.md."""
