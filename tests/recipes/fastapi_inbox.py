# fastapi_inbox.py
from bot import inbox
from fastapi import FastAPI

app = FastAPI()
app.add_route("/agentphone", inbox.asgi)
