"""What maintainers run: the benchmark, the release and its card, the small networks' training, the pictures of README and RESULTS.md."""
