"""The same networks, faster: fused, reordered or in half precision."""
