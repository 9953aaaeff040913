# fedit in a container: the wheel of this checkout with the pinned versions, an ordinary user, one folder for all data.
#   docker build -t fedit .                                             with a GPU build of PyTorch (several GB)
#   docker build -t fedit --build-arg TORCH_INDEX=<PyTorch's CPU package index> .      for CPUs alone
#   docker run --rm -v fedit-data:/data fedit run demo --out runs/first
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY recipes recipes
COPY fedit fedit
RUN pip install --no-cache-dir -c constraints.txt build hatchling \
 && python -m build --wheel --no-isolation --outdir /dist

FROM python:3.12-slim
ARG TORCH_INDEX=""
ARG EXTRAS="flower,hub,judge,parquet,privacy"
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 HF_HOME=/data/huggingface FEDIT_CACHE=/data/cache
WORKDIR /install
COPY constraints.txt ./
# PyTorch first: whatever is installed afterwards finds it there and fetches no other.
RUN if [ -n "$TORCH_INDEX" ]; then pip install -c constraints.txt --index-url "$TORCH_INDEX" torch; \
    else pip install -c constraints.txt torch; fi
COPY --from=build /dist dist
RUN pip install -c constraints.txt "$(echo ./dist/*.whl)[$EXTRAS]" && rm -r dist \
 && useradd --create-home --uid 1000 fedit && mkdir /data && chown fedit:fedit /data
USER fedit
WORKDIR /data
VOLUME /data
ENTRYPOINT ["fedit"]
CMD ["--help"]
