# Isengard with AI-Toolkit, for an NVIDIA GPU:
#   docker build -t isengard . && docker run --gpus all -p 7860:7860 -v isengard:/data -e ISENGARD_AUTH=me:secret isengard
# With a job list for several machines or cards: compose.yaml. A command of its own, beside the page:
#   docker exec -u isengard CONTAINER python -m isengard jobs
# Nobody has built this yet, as there was no Docker at hand: hadolint reads it, and tests/unit/test_dockerfile.py checks
# each path, package, command and variable in it as far as that goes without one.

# The CUDA of torch's wheels, which bring its libraries themselves; "base" is the CUDA runtime without a second copy of
# those, and tells NVIDIA's container toolkit which driver is needed.
FROM nvidia/cuda:13.0.3-base-ubuntu24.04

# torch.compile needs the compiler and Python's headers each time it runs; git fetches AI-Toolkit; tini hands signals on
# and clears away the processes that AI-Toolkit leaves behind.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ git python3.12-dev python3.12-venv tini \
    && rm -rf /var/lib/apt/lists/*
RUN userdel --remove ubuntu && useradd --uid 1000 --create-home isengard && install -d -o isengard -g isengard /data
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH

# What changes seldom comes first. All of it belongs to root: the page and its workers cannot change their own code.
COPY requirements.txt ./
RUN python3.12 -m venv /opt/venv && pip install --no-cache-dir -r requirements.txt
COPY requirements-ai-toolkit.txt ./
RUN pip install --no-cache-dir -r requirements-ai-toolkit.txt -c requirements.txt
# The one tested commit, as in isengard/store/ai_toolkit.py.
ARG AI_TOOLKIT_COMMIT=27a03a91f23eb1b757d5ec2e80ee3e129cfcc350
RUN git init --quiet /opt/ai-toolkit \
    && git -C /opt/ai-toolkit fetch --no-tags --depth=1 https://github.com/ostris/ai-toolkit "$AI_TOOLKIT_COMMIT" \
    && git -C /opt/ai-toolkit checkout --quiet --detach FETCH_HEAD
ENV ISENGARD_AI_TOOLKIT=/opt/ai-toolkit

COPY . .
# "install" fetches nothing any more: it fails where something of AI-Toolkit is missing. Everything is kept in ./data,
# which is /workspace/isengard when a volume is mounted at /workspace, and else /data: see scripts/container.sh.
RUN python -m isengard --data-dir /build ai-toolkit install \
    && python -m compileall -q app.py isengard tabs \
    && rm -r /build \
    && ln -s /data data

ENV HOME=/home/isengard \
    HF_HOME=/app/data/huggingface \
    ISENGARD_HOST=0.0.0.0
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=1m \
    CMD ["python", "-c", "import os, urllib.request as web; web.urlopen(f\"http://127.0.0.1:{os.environ.get('ISENGARD_PORT') or 7860}/health\", timeout=5)"]
# It begins as root, to give a new volume to the user "isengard" (1000), and goes on as that one.
ENTRYPOINT ["tini", "--", "sh", "/app/scripts/container.sh"]
CMD ["python", "app.py"]
