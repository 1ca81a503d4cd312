# django_urls.py
from bot import inbox
from django.urls import path

urlpatterns = [path("agentphone", inbox.django)]
