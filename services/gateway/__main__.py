"""``python -m services.gateway``."""

from services.gateway.app import create_app
from services.gateway.settings import Settings
from shared.serve import main

if __name__ == "__main__":
    main("gateway", Settings, create_app)
