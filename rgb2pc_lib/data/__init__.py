"""Files on disk become paired token batches."""
