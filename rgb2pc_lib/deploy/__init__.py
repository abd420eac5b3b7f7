"""A run becomes embeddings of new images, one small model, a folder to share."""
