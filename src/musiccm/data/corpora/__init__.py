"""What a corpus names, read by its layout: clips with captions and tags, checked file by file."""
