"""Sends one event to the group for each line that it reads.

Usage: ``python feed.py LAYER REDIS_URL PAYLOAD_FILE``
"""

# mypy: ignore-errors
# What it imports is installed where the benchmark runs it, and nowhere else.

import asyncio
import sys
from pathlib import Path

from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

_LAYERS = {"core": RedisChannelLayer, "pubsub": RedisPubSubChannelLayer}


async def main(layer: str, redis_url: str, payload: str) -> None:
    """Read lines until there are no more."""
    channel_layer = _LAYERS[layer](hosts=[redis_url])
    event = {"type": "tell", "text": payload}
    while await asyncio.to_thread(sys.stdin.readline):
        await channel_layer.group_send("bench", event)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_text()))
