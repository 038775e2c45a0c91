"""Images: read from files, drawn as phantoms, split by patient, cut into training crops."""
