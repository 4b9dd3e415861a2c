//! Provides what compiles kernels for a card: NVRTC, asked for the card's own code.
//!
//! Own code (a cubin) is loaded by every driver of NVRTC's major version. PTX, which the driver translates, is refused by one that is
//! older than NVRTC, by a minor version too; so it is asked for only where NVRTC does not know the card.

use std::fmt;

use candle_core::{Result, bail};

/// What kernels are compiled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Code of the architecture of this number, such as 89.
    Own(i32),
    /// PTX for this architecture and later ones.
    Translated(i32),
}

impl Target {
    /// The best for a card of `capability` that a compiler of these architectures can do.
    ///
    /// # Errors
    /// When the card is older than all of them.
    pub fn of(capability: i32, architectures: &[i32]) -> Result<Self> {
        let known = architectures.iter().copied();
        match known.clone().filter(|known| *known <= capability).max() {
            Some(known) if known == capability => Ok(Self::Own(known)),
            Some(older) => Ok(Self::Translated(older)),
            None => bail!(
                "it compiles for architectures from sm_{} on, and this card is sm_{capability}; take a build with an older CUDA \
                 toolkit",
                known.min().unwrap_or_default()
            ),
        }
    }
}

impl fmt::Display for Target {
    /// As the compiler is told.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(number) => write!(f, "sm_{number}"),
            Self::Translated(number) => write!(f, "compute_{number}"),
        }
    }
}

#[cfg(feature = "cuda")]
pub(crate) use nvrtc::Nvrtc;

#[cfg(feature = "cuda")]
mod nvrtc {
    #![expect(unsafe_code, reason = "calls NVRTC")]

    use std::ffi::{CString, c_char};
    use std::sync::OnceLock;

    use candle_core::cuda_backend::cudarc::nvrtc::result::{
        NvrtcError, compile_program, create_program, destroy_program, get_program_log, get_ptx,
    };
    use candle_core::cuda_backend::cudarc::nvrtc::sys;
    use candle_core::{Error, Result, bail};

    use super::Target;

    /// Nothing of fast math: what is computed must be what the CPU computes, to rounding.
    const LANGUAGE: &str = "--std=c++17";

    /// The NVRTC that the loader found.
    pub(crate) struct Nvrtc {
        architectures: Vec<i32>,
        /// Name, version and options.
        name: String,
    }

    impl Nvrtc {
        /// Asks it what it is, once in a process.
        ///
        /// # Errors
        /// When it does not answer.
        pub fn get() -> Result<&'static Self> {
            static FOUND: OnceLock<std::result::Result<Nvrtc, String>> = OnceLock::new();
            let found = FOUND.get_or_init(|| {
                Self::ask().map_err(|error| format!("NVRTC does not answer: {error}"))
            });
            found.as_ref().map_err(Error::msg)
        }

        fn ask() -> std::result::Result<Self, NvrtcError> {
            let (mut major, mut minor, mut count) = (0, 0, 0);
            // SAFETY: each writes one number.
            unsafe {
                sys::nvrtcVersion(&mut major, &mut minor).result()?;
                sys::nvrtcGetNumSupportedArchs(&mut count).result()?;
            }
            let mut architectures = vec![0; usize::try_from(count).unwrap_or_default()];
            // SAFETY: writes as many numbers as it has just said.
            unsafe { sys::nvrtcGetSupportedArchs(architectures.as_mut_ptr()).result()? };
            Ok(Self {
                architectures,
                name: format!("NVRTC {major}.{minor} {LANGUAGE}"),
            })
        }

        /// Its name with version and options.
        pub fn name(&self) -> &str {
            &self.name
        }

        /// What it compiles to for a card of this capability.
        ///
        /// # Errors
        /// When it is too new for the card.
        pub fn target(&self, capability: i32) -> Result<Target> {
            Target::of(capability, &self.architectures)
                .map_err(|error| error.context(format!("{} has no use here", self.name)))
        }

        /// The image that a driver loads.
        ///
        /// # Errors
        /// What it says of the text.
        pub fn compile(&self, text: &str, target: Target) -> Result<Vec<u8>> {
            let text = CString::new(text).map_err(Error::wrap)?;
            let failed = |error: NvrtcError| Error::msg(format!("{}: {error}", self.name));
            let program = Program(create_program(&text, None).map_err(failed)?);
            let options = [format!("--gpu-architecture={target}"), LANGUAGE.to_owned()];
            // SAFETY: the program was made above, and is destroyed after this.
            if let Err(error) = unsafe { compile_program(program.0, &options) } {
                let log = unsafe { get_program_log(program.0) }.unwrap_or_default();
                bail!("{} for {target}: {error}\n{}", self.name, text_of(&log));
            }
            let image = match target {
                Target::Own(_) => program.cubin(),
                // SAFETY: as above. The text ends with the zero that the driver looks for.
                Target::Translated(_) => unsafe { get_ptx(program.0) }.map(bytes),
            };
            image.map_err(failed)
        }
    }

    /// A program that is destroyed when it is dropped.
    struct Program(sys::nvrtcProgram);

    impl Program {
        fn cubin(&self) -> std::result::Result<Vec<u8>, NvrtcError> {
            let mut size = 0;
            // SAFETY: the program lives; the size is written, and then as many bytes.
            unsafe {
                sys::nvrtcGetCUBINSize(self.0, &mut size).result()?;
                let mut cubin = vec![0u8; size];
                sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()).result()?;
                Ok(cubin)
            }
        }
    }

    impl Drop for Program {
        fn drop(&mut self) {
            // SAFETY: nobody else has it. What it says does not matter any more.
            let _ = unsafe { destroy_program(self.0) };
        }
    }

    fn bytes(text: Vec<c_char>) -> Vec<u8> {
        text.into_iter().map(|byte| byte as u8).collect()
    }

    fn text_of(log: &[c_char]) -> String {
        let text = bytes(log.to_vec());
        let text = String::from_utf8_lossy(&text);
        text.trim_end_matches(['\0', '\n']).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::Target;

    /// Those of NVRTC 13.0.
    const KNOWN: [i32; 12] = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121];

    #[test]
    fn a_card_that_the_compiler_knows_gets_its_own_code() {
        for (capability, target) in [(75, "sm_75"), (89, "sm_89"), (121, "sm_121")] {
            let found = Target::of(capability, &KNOWN).unwrap();
            assert_eq!(found.to_string(), target);
        }
    }

    #[test]
    fn a_card_newer_than_the_compiler_gets_ptx_of_the_latest_it_knows() {
        for (capability, target) in [(130, "compute_121"), (91, "compute_90")] {
            let found = Target::of(capability, &KNOWN).unwrap();
            assert_eq!(found.to_string(), target);
        }
    }

    #[test]
    fn a_card_older_than_the_compiler_is_refused_with_what_to_do() {
        let error = Target::of(70, &KNOWN).unwrap_err().to_string();
        assert!(
            error.contains("sm_75") && error.contains("sm_70"),
            "{error}"
        );
        assert!(error.contains("older CUDA toolkit"), "{error}");
        assert!(Target::of(89, &[]).is_err());
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn nvrtc_makes_what_a_driver_loads_and_says_what_is_wrong() {
        let nvrtc = super::Nvrtc::get().unwrap();
        let text = crate::SELF_TEST.text();
        let own = nvrtc.compile(&text, Target::Own(80)).unwrap();
        assert!(own.starts_with(b"\x7fELF"));
        let translated = nvrtc.compile(&text, Target::Translated(80)).unwrap();
        let translated = String::from_utf8(translated).unwrap();
        assert!(translated.contains(".target sm_80") && translated.ends_with('\0'));
        let error = nvrtc.compile("no kernel", Target::Own(80)).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("NVRTC ") && error.contains("sm_80"),
            "{error}"
        );
        assert!(error.contains("error: "), "{error}");
    }
}
