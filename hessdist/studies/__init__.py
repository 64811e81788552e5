"""Studies of the source documents, one module each; their numerics live in other rooms."""
