"""The processes of the system, one package each; none imports another."""
