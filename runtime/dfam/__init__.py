"""What the runtime knows of the family `dfam`: what manifests of format 1 left unsaid."""
