# The web page of clipcap on a CPU: docker compose up
FROM python:3.11-slim-bookworm

# Where torch comes from; a mirror: docker compose build --build-arg TORCH_INDEX=https://…
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN useradd --create-home clipcap && mkdir /models && chown clipcap /models
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY clipcap ./clipcap
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision \
    && pip install --no-cache-dir '.[app]'

USER clipcap
ENV OMP_NUM_THREADS=4 HF_HOME=/models/huggingface
EXPOSE 7860
VOLUME /models
ENTRYPOINT ["clipcap", "app", "--host", "0.0.0.0", "--port", "7860"]
