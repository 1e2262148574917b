"""What two or more services need, one idea a module: wire contract, blob store, bus."""
