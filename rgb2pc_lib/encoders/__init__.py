"""RGB or clouds become packs and teacher files."""
