"""From the files that MusicLDM and AudioLDM were released as to a bundle in the diffusers layout."""
