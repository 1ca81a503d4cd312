"""The demo data: a few dozen plausible conversations, the same on every machine and every day.

Texts are assembled from small scenes by a seeded random source. Phone numbers are from the range reserved for fiction
(+1 555 01xx); people have only a first name.
"""

import random
from datetime import datetime, timedelta
from typing import Any

from agentphone.sandbox._behavior import parse_timestamp
from agentphone.sandbox._messages import Direction, MessageInput

AGENT_NUMBERS = ("+15555550100", "+15555550101")
LONGEST_CONVERSATION = 640
END = datetime.fromisoformat("2025-06-30T17:45:00Z")

NAMES = (
    "Ada Ben Carla Dmitri Elena Farid Grace Hugo Ines Jonas Kira Liam Maya Noor Omar Priya Quinn Rosa "
    "Sami Tess Uma Viktor Wendy Ximena Yusuf Zoe Anton Bea Chen Dora Emil Fatima Gus Hana Ivan Jun"
)

# Each scene: its topic, then its texts in turn, the person's first.
SCENES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "order_tracking",
        (
            "Hi, where is my order {order}? It was due {day}.",
            "Hi {name}, let me look. Order {order} left our warehouse and should reach you by {day}.",
            "Thanks. Can they leave it with a neighbour?",
            "Done. I added the note for the driver.",
            "Perfect, thank you!",
            "You are welcome. Anything else I can do?",
        ),
    ),
    (
        "appointment",
        (
            "Can I move my appointment on {day} to the afternoon?",
            "Of course, {name}. I have {hour}:00 or {hour}:30. Which suits you?",
            "{hour}:30 please",
            "Booked: {day} at {hour}:30. I will send a reminder the day before.",
            "👍",
            "See you then!",
        ),
    ),
    (
        "billing",
        (
            "I was charged twice for {order} 😕",
            "I am sorry about that, {name}. I see both charges and have asked for one to be returned.",
            "How long will it take?",
            "Three to five working days. You will get a text from us when it is through.",
            "ok",
        ),
    ),
    (
        "returns",
        (
            "The shoes are too small. How do I return them?",
            "No problem. Which size would fit, or would you rather have the money back?",
            "One size up if you have it",
            "We do. Your label is on its way by e-mail; the new pair leaves as soon as the old one is scanned.",
            "That was easy, thanks",
            "Glad to hear it, {name}.",
        ),
    ),
    (
        "opening_hours",
        (
            "Are you open on {day}?",
            "Yes, from 9:00 until {hour}:00.",
            "And is there parking?",
            "Behind the building, free for two hours.",
        ),
    ),
    (
        "small_talk",
        (
            "Just wanted to say the delivery came early. Made my day.",
            "Thank you, {name}! I will pass it on to the team.",
            "¡Muchas gracias!",
        ),
    ),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


def demo_data() -> tuple[list[MessageInput], dict[str, dict[str, Any]]]:
    """Create the demo data.

    Returns:
        The messages, oldest first, and the metadata of some conversations by participant.
    """
    source = random.Random(2025)  # noqa: S311  # the data must be the same each time
    messages: list[MessageInput] = []
    metadata: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(NAMES.split()):
        participant = f"+155555501{index + 10:02d}"
        agent_number = AGENT_NUMBERS[index % len(AGENT_NUMBERS)]
        order = f"ORD-{source.randrange(10_000, 99_999)}"
        length = LONGEST_CONVERSATION if index == 0 else source.randrange(2, 60)
        moment = END - timedelta(minutes=source.randrange(20_000) if index else 0)
        topic = ""
        history: list[MessageInput] = []
        while len(history) < length:
            topic, texts = source.choice(SCENES)
            words = {"name": name, "order": order, "day": source.choice(DAYS), "hour": source.randrange(13, 18)}
            # From the last text to the first, because only the end of a conversation is known.
            for turn in range(len(texts) - 1, -1, -1):
                direction: Direction = "outbound" if turn % 2 else "inbound"
                text = texts[turn].format_map(words)
                history.append(MessageInput(direction, agent_number, participant, text, parse_timestamp(moment)))
                moment -= timedelta(seconds=source.randrange(5, 240), microseconds=source.randrange(1_000_000))
            moment -= timedelta(seconds=source.randrange(3_600, 90_000))
        messages += history[:length]
        if index % 3 != 2:
            metadata[participant] = {"customerName": name, "orderId": order, "topic": topic, "resolved": index % 2 == 0}
    messages.sort(key=lambda message: message.at or 0)
    return messages, metadata
