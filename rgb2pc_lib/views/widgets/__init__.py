"""What a person touches: the pictures of `views`, with controls."""
