"""``python -m services.storage``."""

from services.storage.app import create_app
from services.storage.reindexing import REINDEX
from services.storage.settings import Settings
from services.storage.verifying import VERIFY
from shared.serve import main

if __name__ == "__main__":
    commands = {"reindex": REINDEX, "verify": VERIFY}
    main("storage", Settings, create_app, commands=commands)
