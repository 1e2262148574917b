"""``python -m services.storage``."""

from services.storage.app import create_app
from services.storage.settings import Settings
from shared.serve import main

if __name__ == "__main__":
    main("storage", Settings, create_app)
