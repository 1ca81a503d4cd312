"""The tables of conversations and messages, and the statements that read and write them.

Every page is read through an index. `SCHEMA_VERSION` grows with every change of a table, also of one in `_deliveries`,
so that a file with other tables is rejected and not misread.
"""

SCHEMA_VERSION = 2
SCHEMA = (
    # channel: that of its latest message. WhatsApp is a thread of its own; SMS, MMS and iMessage share one.
    # members: a JSON list of a group's members, whose id is the participant; NULL for a conversation between two.
    """CREATE TABLE IF NOT EXISTS conversations (
        serial INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        agent_number TEXT NOT NULL,
        participant TEXT NOT NULL,
        is_whatsapp INTEGER NOT NULL,
        channel TEXT NOT NULL,
        members TEXT,
        last_message_at INTEGER NOT NULL,
        preview TEXT NOT NULL,
        message_count INTEGER NOT NULL,
        metadata TEXT,
        created_at INTEGER NOT NULL,
        UNIQUE (agent_number, participant, is_whatsapp))""",
    "CREATE INDEX IF NOT EXISTS by_activity ON conversations (last_message_at DESC, serial DESC)",
    # position: the conversation's message count when this message was stored; it orders messages of equal timestamps.
    # visible_at: seconds since 1970, real time. The history shows the message from then on.
    # details: a JSON object with what few messages have, under the API's names; NULL for none.
    """CREATE TABLE IF NOT EXISTS messages (
        conversation INTEGER NOT NULL,
        received_at INTEGER NOT NULL,
        position INTEGER NOT NULL,
        id TEXT NOT NULL,
        direction TEXT NOT NULL,
        body TEXT NOT NULL,
        channel TEXT NOT NULL,
        status TEXT NOT NULL,
        visible_at REAL NOT NULL,
        details TEXT,
        PRIMARY KEY (conversation, received_at, position)) WITHOUT ROWID""",
    "CREATE UNIQUE INDEX IF NOT EXISTS by_message_id ON messages (id)",
    """CREATE TABLE IF NOT EXISTS numbers (
        number TEXT PRIMARY KEY,
        number_id TEXT NOT NULL UNIQUE,
        agent_id TEXT NOT NULL UNIQUE) WITHOUT ROWID""",
)
COUNT_CONVERSATIONS = "SELECT count(*) FROM conversations"
LIST_CONVERSATIONS = "SELECT * FROM conversations ORDER BY last_message_at DESC, serial DESC LIMIT ? OFFSET ?"
GET_CONVERSATION = "SELECT * FROM conversations WHERE id = ?"
GET_CONVERSATION_OF_MESSAGE = "SELECT * FROM conversations WHERE serial = ?"
FIND_CONVERSATION = "SELECT * FROM conversations WHERE agent_number = ? AND participant = ? AND is_whatsapp = ?"
GET_MESSAGE = "SELECT * FROM messages WHERE id = ?"
GET_NUMBER = "SELECT number FROM numbers WHERE number_id = ?"
GET_NUMBER_OF_AGENT = "SELECT number FROM numbers WHERE agent_id = ?"
NEWEST_MESSAGES = """SELECT * FROM messages WHERE conversation = ? AND received_at BETWEEN ? AND ? AND visible_at <= ?
    ORDER BY received_at DESC, position DESC LIMIT ?"""
OLDEST_MESSAGES = """SELECT * FROM messages WHERE conversation = ? AND received_at BETWEEN ? AND ? AND visible_at <= ?
    ORDER BY received_at, position LIMIT ?"""
# A message older than the conversation's last one counts, but does not move the conversation or become its preview.
UPSERT_CONVERSATION = """INSERT INTO conversations
    (id, agent_number, participant, is_whatsapp, channel, members, last_message_at, preview, message_count, metadata,
        created_at)
    VALUES (:id, :agent_number, :participant, :is_whatsapp, coalesce(:channel, 'sms'), :members, :at, :preview, 1, NULL,
        :at)
    ON CONFLICT (agent_number, participant, is_whatsapp) DO UPDATE SET
        message_count = message_count + 1,
        channel = coalesce(:channel, channel),
        preview = iif(excluded.last_message_at >= last_message_at, excluded.preview, preview),
        last_message_at = max(excluded.last_message_at, last_message_at)
    RETURNING *"""
INSERT_MESSAGE = """INSERT INTO messages VALUES (:conversation, :received_at, :position, :id, :direction, :body,
    :channel, :status, :visible_at, :details)"""
SET_DETAILS = "UPDATE messages SET details = ? WHERE id = ?"
ADD_NUMBER = "INSERT OR IGNORE INTO numbers VALUES (?, ?, ?)"
