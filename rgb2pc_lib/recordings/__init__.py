"""Other people's recordings, old packs and the simulator become workspaces."""
