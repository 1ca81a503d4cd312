# starlette_inbox.py
from bot import inbox
from starlette.applications import Starlette
from starlette.routing import Route

app = Starlette(routes=[Route("/agentphone", inbox.asgi)])
