# MedLiteNet with the command `medlitenet` as entry point, for a CPU. For NVIDIA GPUs:
#   docker build --build-arg ACCELERATOR=cuda12 --tag medlitenet:cuda12 .
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

# cpu or cuda12: which requirements are installed. The driver comes from the host.
ARG ACCELERATOR=cpu

WORKDIR /opt/medlitenet
COPY requirements.txt requirements-cuda12.txt ./
RUN case "$ACCELERATOR" in \
      cpu) file=requirements.txt ;; \
      cuda12) file=requirements-cuda12.txt ;; \
      *) echo "ACCELERATOR is cpu or cuda12, not $ACCELERATOR" >&2; exit 2 ;; \
    esac \
    && pip install --no-cache-dir --requirement "$file"

# All of it: the recipes and the released weights are installed with the package.
COPY . .
RUN pip install --no-cache-dir --no-deps .

# Compiled programs and Matplotlib's fonts are kept where any user may write.
RUN useradd --create-home medlitenet && mkdir -m 1777 /cache /work
ENV HOME=/cache XDG_CACHE_HOME=/cache MPLCONFIGDIR=/cache/matplotlib
USER medlitenet
WORKDIR /work
ENTRYPOINT ["medlitenet"]
CMD ["--help"]
