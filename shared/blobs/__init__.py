"""Where the bytes of uploads and their sidecars are kept."""
