"""The least work that could do the same job; what a service is measured against."""
