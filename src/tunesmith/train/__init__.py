"""Train an adapter: the loop, its checks before, during and after, and its checkpoints."""
