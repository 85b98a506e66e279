# A Django project with a login: django_server.py DIRECTORY. It says "listening PORT".

import sys
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server

import django
from django.conf import settings

root = Path(sys.argv[1])
settings.configure(
    # No host but its own is allowed, and no origin is trusted.
    ALLOWED_HOSTS=["localhost"],
    SECRET_KEY="for tests alone",
    ROOT_URLCONF=__name__,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": root / "db"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [
                    (
                        "django.template.loaders.locmem.Loader",
                        {
                            "login.html": "<form method=post>{% csrf_token %}{{ form.as_p }}<button>log in</button></form>"
                        },
                    )
                ]
            },
        }
    ],
    # A million rounds of a real one would be most of the test's time.
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    LOGIN_URL="/login/",
    LOGIN_REDIRECT_URL="/",
)
django.setup()

from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.contrib.auth.views import LoginView
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path


@login_required
def home(request):
    return HttpResponse(f"<p>hello {request.user.username}</p>")


urlpatterns = [path("", home), path("login/", LoginView.as_view(template_name="login.html"))]

call_command("migrate", verbosity=0)
User.objects.create_user("ada", password="correct horse")


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


server = make_server("127.0.0.1", 0, get_wsgi_application(), server_class=Server)
print("listening", server.server_port)
server.serve_forever()
