"""What a person sees; nothing below imports it."""
