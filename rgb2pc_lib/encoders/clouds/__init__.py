"""Point clouds become teacher files."""
