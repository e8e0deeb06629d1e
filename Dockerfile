# docker build -t onelora .                          with CUDA
# docker build -t onelora --build-arg TORCH=cpu .    without
# docker run --rm --gpus all -v "$PWD/out:/work/out" onelora train dit --output_dir out/dit
FROM python:3.12-slim

ARG TORCH=cuda
RUN useradd --create-home --uid 1000 user && mkdir /work && chown user /work
USER user
ENV VIRTUAL_ENV=/home/user/venv PATH=/home/user/venv/bin:$PATH PIP_NO_CACHE_DIR=1 HF_HOME=/work/out/.cache
RUN python -m venv $VIRTUAL_ENV
# PyTorch has a layer of its own: it is the largest, and changes least.
RUN if [ "$TORCH" = cpu ]; then index="--index-url https://download.pytorch.org/whl/cpu"; fi; \
    pip install torch torchvision $index
COPY --chown=user . /home/user/source
RUN pip install "/home/user/source[all]" && rm -r /home/user/source
WORKDIR /work
EXPOSE 7860
ENTRYPOINT ["onelora"]
CMD ["--help"]
