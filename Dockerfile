# Isengard with AI-Toolkit, for an NVIDIA GPU:
#   docker build -t isengard . && docker run --gpus all -p 7860:7860 -v isengard:/data -e ISENGARD_AUTH=me:secret isengard
# torch's wheels bring CUDA themselves, so no CUDA base image is needed.
FROM python:3.11-slim

RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
WORKDIR /app

# Packages first: they change seldom.
COPY requirements.txt requirements-ai-toolkit.txt ./
RUN pip install --no-cache-dir -r requirements.txt \
    && pip install --no-cache-dir -r requirements-ai-toolkit.txt -c requirements.txt bitsandbytes

COPY . .
# The one tested commit, checked; the packages are here already.
RUN python -m isengard --data-dir /opt/isengard ai-toolkit install && python -m compileall -q isengard tabs

ENV ISENGARD_AI_TOOLKIT=/opt/isengard/ai-toolkit \
    ISENGARD_DATA_DIR=/data \
    ISENGARD_HOST=0.0.0.0
VOLUME /data
EXPOSE 7860
CMD ["python", "app.py"]
