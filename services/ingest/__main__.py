"""``python -m services.ingest``."""

from services.ingest.app import create_app
from services.ingest.reaping import REAP
from services.ingest.settings import Settings
from shared.serve import main

if __name__ == "__main__":
    main("ingest", Settings, create_app, commands={"reap": REAP})
