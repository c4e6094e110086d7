"""What `scripts/build-deb` puts into the package, and from what.  Standard library only."""
