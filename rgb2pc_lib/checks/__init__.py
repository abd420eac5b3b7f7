"""Are the data sound, before anything is trained."""
