"""The systems that train the bundle's parts from raw audio, one a file."""
