"""A world of clips that tell one to three events in time: order, counts and tempi that a caption asks for."""
