"""How files are read and written, whatever stands in them: whole, or one line says why not."""
